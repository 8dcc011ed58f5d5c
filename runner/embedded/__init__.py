"""The embedded services: PostgreSQL, an AWS emulator and an open-data portal, processes under one folder."""
