"""Amazon SageMaker tasks for the Remora worker. The entry point is :mod:`remora_sagemaker.plugin`."""
