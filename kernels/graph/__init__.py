"""What works on graphs and is no kernel: sizes; what is hoisted, cut or measured; float16; what a layer looks like."""
