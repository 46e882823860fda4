"""The ranked list: the best items of a user, by raw ids, those already seen left out."""
