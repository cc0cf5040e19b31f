"""What a person looks at: console, TensorBoard, figures. Reads results; never steers training."""
