"""Worker processes: messages between two processes, the parent's side and the child's."""
