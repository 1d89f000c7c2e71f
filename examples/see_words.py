"""See where in the picture each word is read, and how much of the attention it has."""

from sdcore import TextToImage, WordHeatmaps

pipe = TextToImage.embedded()
prompt = "a penguin to the left of a red apple in flat style, light blue background"

heatmaps = WordHeatmaps(pipe.tokenizer(prompt), windows=4)
picture = pipe(prompt, seed=1, steps=8, control=heatmaps).images[0]  # the same as without

for word in ("penguin", "left", "apple"):
    heatmaps.overlay(picture.resize((256, 256)), word).save(f"{word}.png")

penguin = heatmaps.of("penguin")  # (h, w): the share of attention that each place gives the word
early = heatmaps.of("penguin", steps=(0, 0.25))  # in the first quarter of the run
print("brightest at", divmod(int(penguin.argmax()), penguin.shape[1]), "of", tuple(penguin.shape))
print("in the first quarter at", divmod(int(early.argmax()), early.shape[1]))

for word in heatmaps.share():
    print(f"{100 * word.share:5.2f} %  {word.span.word}")
