"""The command line of the streaming half, thin: options in, tables and sentences out."""
