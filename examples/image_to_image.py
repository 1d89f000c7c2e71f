"""Begin from a picture, and repaint a part of one."""

from PIL import Image

from sdcore import TextToImage

pipe = TextToImage.embedded()
prompt = "a penguin in flat style on a light blue background"
penguin = pipe(prompt, seed=1, steps=8).images[0]  # or open_picture("photo.jpg")

# Another thing of about the same shape: the higher the strength, the more is painted anew.
for strength in (0.4, 0.8):
    changed = pipe(
        "a fox in flat style on a light blue background",
        image=penguin,
        strength=strength,
        seed=1,
        steps=8,
    )
    changed.images[0].save(f"fox_{strength}.png")

# White in the mask is repainted, black is kept to the bit.
mask = Image.new("L", penguin.size)
mask.paste(255, (0, penguin.height // 2, penguin.width, penguin.height))
lower = pipe("a fox in flat style on yellow", image=penguin, mask=mask, seed=1, steps=8)
lower.images[0].save("lower_half.png")
