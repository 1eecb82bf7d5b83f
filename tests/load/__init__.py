"""Measurements that take too long for a test run; each is a program."""
