"""Lessons about the networks that candid has, each a program that can be read: `make lessons` turns them into pages."""
