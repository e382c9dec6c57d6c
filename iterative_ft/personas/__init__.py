"""Data shipped with the package: seed chats, documents, judge texts, held-out answers, questions and prompt pools."""
