"""What all stages share: command line, params, errors, atomic files, device, figures, and the format of the splits."""
