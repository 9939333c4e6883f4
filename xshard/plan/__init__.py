"""`Plan`: what was decided and predicted; printable, saved as JSON, compared, explained."""
