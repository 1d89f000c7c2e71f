"""Change one word and keep the rest of the picture (prompt-to-prompt)."""

from sdcore import EditSettings, PromptEdit, TextToImage, read_tokens

pipe = TextToImage.embedded()
prompts = [
    "a penguin to the left of a red apple in flat style, light blue background",
    "a fox to the left of a red apple in flat style, light blue background",
]

settings = EditSettings(
    cross=(0, 0.5),  # in the first half of the run the words that stayed are read where they were
    layout=(0, 0.4),  # and in its first 40 % the layout is the first picture's
)
edit = PromptEdit(read_tokens(prompts, pipe.tokenizer), settings)

# One seed for both: they begin from one noise.
before, after = pipe(prompts, seed=[1, 1], steps=8, control=edit).images
before.save("before.png")
after.save("after.png")
