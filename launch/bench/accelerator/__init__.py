"""The suite "accelerator": cells and layers on one GPU or TPU, with PyTorch beside them."""
