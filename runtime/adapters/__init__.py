"""LoRAs and their kin: what a file of one holds, which layers it changes, and what a graph is told of several at once.

Pure: files, numpy and names. Nothing here opens a graph.
"""
