"""What belongs together: images that look alike (`near_images`), titles that are one title (`normalised_titles`), and
rows linked by either, directly or through others (`groups`).
"""
