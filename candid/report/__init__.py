"""A run folder becomes one self-contained HTML page, `report.html`, and figures for papers and slides.

`reading` reads the folder, `headline` finds the words for its number, `pictures` gathers the thumbnails,
`figures` draws, `page` puts it all together, and `writing` writes it down. Nothing but the run folder is looked at.
"""
