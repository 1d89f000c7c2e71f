"""Sequence models to read beside the UNet: recurrent, the Transformer of 2017, decoding.

recurrent_translator.py  what came before
transformer.py  encoder and decoder;  decoding.py  greedy and beam search
"""
