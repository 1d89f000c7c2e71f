"""What is added to a model: LoRA and textual inversion.

lora.py  LoRAs on a model
lora_file.py, lora_names.py, lora_math.py  LoRAs read;  lora_saving.py  and back
textual_inversion.py  learned words
"""
