"""How fast each part is beside what it stands against, in one run: `solo-minent bench`."""
