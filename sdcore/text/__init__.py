"""Text to vectors: tokenizer and text encoder, and where in the tokens each word is.

tokenizer.py, tokenizer_files.py   text to ids
encoder.py, config.py              ids to vectors: CLIP's text Transformer
recurrent_encoder.py               the same with RNN or LSTM cells
words.py                           the places of words among tokens
nouns.py                           which words name things, by a rule
known_words.py                     the words that a model was taught
"""
