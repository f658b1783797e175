"""The command line: thin click commands over `engine`, one file a command."""
