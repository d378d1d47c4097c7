"""A Hugging Face Space: this folder, pushed as it is, serves the bundled student to strangers."""

from app.serve import serve

serve(host="0.0.0.0", port=7860, browser=False, public=True)
