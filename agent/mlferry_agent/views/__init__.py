"""What a person sees: tables, progress, sentences. What names a run or quotes a server is made printable first."""
