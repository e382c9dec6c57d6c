"""What all judges that are language models share: prompts, replies, and how a reply becomes a score."""
