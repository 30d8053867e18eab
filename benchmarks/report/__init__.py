"""Tables and plots of the documents, made from the stored rows."""
