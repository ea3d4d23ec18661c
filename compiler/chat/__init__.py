"""Text generation in the compiler: chat data, samples, fine-tuning, and what settles the task."""
