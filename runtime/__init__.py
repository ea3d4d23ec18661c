"""The thin runtime: bundle -> predictions, command line. Imports neither torch nor transformers."""
