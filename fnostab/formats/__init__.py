"""Files of measured scans."""
