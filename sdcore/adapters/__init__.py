"""What is added to a model: LoRA and textual inversion.

lora.py  LoRAs applied to a model;  lora_layer.py  a layer with changes beside it
lora_file.py, lora_names.py, lora_words.py  LoRAs read;  lora_saving.py, lora_peft.py  and back
lora_math.py, lora_kinds.py  what they compute;  lora_blocks.py  how much in each block
textual_inversion.py  learned words;  embedding_saving.py  and back to files
"""
