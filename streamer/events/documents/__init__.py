"""What others are told of the topics: who uses them, and the AsyncAPI document and page that are made of it."""
