"""Say what stands where: a prompt for each part of the picture."""

from sdcore import Region, Regions, TextToImage

pipe = TextToImage.embedded()

regions = Regions(
    "a light blue background",  # what all parts read
    [
        # left, top, right, bottom, as shares of the picture
        Region(
            "a small penguin on the left in flat style, light blue background", box=(0, 0, 0.5, 1)
        ),
        Region(
            "a small red apple on the right in flat style, light blue background",
            box=(0.5, 0, 1, 1),
        ),
    ],
    soft=0.1,  # how far they run into one another
)

# The texts are joined by BREAK, which the dialect of the web UI knows.
result = pipe(regions.prompt, dialect="a1111", seed=1, steps=8, control=regions)
result.images[0].save("regions.png")
