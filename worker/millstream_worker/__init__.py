"""The back: claims jobs, runs their analyses, writes their events."""
