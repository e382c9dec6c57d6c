"""The offline judge: features of a text (`features`), classifiers over them, and how strength follows (`strength`)."""
