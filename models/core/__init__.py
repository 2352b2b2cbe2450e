"""What a world is: specification, files, memory, plan, noise. numpy and safetensors only."""
