"""Values as other systems send them: a registry's frames, envelopes, rows of tables; to a plain JSON or MessagePack map."""
