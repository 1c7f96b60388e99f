"""A ranked study as people read it: tables, figures, Markdown, one HTML file; and what depth did to its winner."""
