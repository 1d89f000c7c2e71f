"""Paint two prompts, one in English and one in Chinese, and save the pictures."""

from sdcore import TextToImage

pipe = TextToImage.embedded()
# Or a model that you have, as a folder, a file or a name on the hub:
# pipe = TextToImage.from_pretrained("model.safetensors")

prompts = ["a penguin in flat style on a light blue background", "一枚火箭，扁平风格，黄色背景"]
result = pipe(prompts, seed=1, steps=8, guidance_scale=5.0)

for image, name in zip(result.images, ("penguin", "rocket"), strict=True):
    image.save(f"{name}.png")  # a PIL picture
    image.resize((512, 512)).save(f"{name}-large.png")
print("seeds:", result.seeds)  # image i has seed + i, alone or in any batch
