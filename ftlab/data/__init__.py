"""From a file in any common format to rows that TRL trains on."""
