"""Let one word count more, less, or not at all."""

from sdcore import Reweight, TextToImage, during, read_tokens

pipe = TextToImage.embedded()
prompt = "a penguin to the left of a red apple in flat style, light blue background"
tokens = read_tokens(prompt, pipe.tokenizer)

pipe(prompt, seed=1, steps=8).images[0].save("as_it_is.png")
without = Reweight(tokens, {"apple": 0.0})  # what is read of the word, times so much
pipe(prompt, seed=1, steps=8, control=without).images[0].save("no_apple.png")

# In the first quarter of the run alone: the steps that follow paint the apple all the same.
at_first = during(without, 0, 0.25)
pipe(prompt, seed=1, steps=8, control=at_first).images[0].save("no_apple_at_first.png")
