"""The front: sockets and HTTP in, jobs to the store, events back."""
