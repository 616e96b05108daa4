"""What a trained model makes: samples and edits, each a function of seed, class and index."""
