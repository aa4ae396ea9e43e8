"""What bundles cross the gap by: places, parts, encryption, signatures. What a bundle holds is known elsewhere."""
