"""Where labelled images come from: published data sets, the embedded one, a folder of your own."""
