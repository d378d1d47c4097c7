"""The application: an exported model, a gallery searched by picture, and the page that shows both. Needs no torch."""
