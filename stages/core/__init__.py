"""What every stage stands on: command line, params, errors, files that appear whole, device, and the splits' format."""
