"""What is made of run folders for readers: the page, pictures, and the W&B workspace."""
