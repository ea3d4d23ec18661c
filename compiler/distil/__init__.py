"""Training against a teacher: losses, the teacher's answers kept on disk, Trainer with both."""
