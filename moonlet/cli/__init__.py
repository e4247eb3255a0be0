"""The command line: one file a verb; a verb parses, calls one function of a room, and prints."""
