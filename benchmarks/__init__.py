"""Side by side with what the field uses: time to a given gap above the certified optimum.

See README.md.
"""
