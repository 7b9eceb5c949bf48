"""The retriever's process: which bundle answers whom, followed as it is deployed, and the transform of the loop."""
