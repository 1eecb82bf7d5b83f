"""Meters and fleets of them."""
