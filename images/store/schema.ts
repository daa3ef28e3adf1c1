/** The tables of the image store in state.db. Steps are only ever appended. */

export const schema: readonly string[] = [
  `CREATE TABLE images (
     id TEXT PRIMARY KEY, config BLOB NOT NULL, manifest BLOB NOT NULL, pinned INTEGER NOT NULL DEFAULT 0
   ) STRICT;
   CREATE TABLE image_names (
     name TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX image_names_image ON image_names (image);
   CREATE TABLE image_manifests (
     digest TEXT PRIMARY KEY, image TEXT NOT NULL REFERENCES images ON DELETE CASCADE
   ) STRICT;
   CREATE INDEX image_manifests_image ON image_manifests (image);
   CREATE TABLE layers (
     diff_id TEXT PRIMARY KEY, number INTEGER NOT NULL UNIQUE, size INTEGER NOT NULL, inodes INTEGER NOT NULL
   ) STRICT;
   CREATE TABLE image_layers (
     image TEXT NOT NULL REFERENCES images ON DELETE CASCADE, position INTEGER NOT NULL,
     diff_id TEXT NOT NULL REFERENCES layers, PRIMARY KEY (image, position)
   ) STRICT;
   CREATE INDEX image_layers_layer ON image_layers (diff_id);
   CREATE TABLE image_leases (
     holder TEXT NOT NULL, image TEXT NOT NULL REFERENCES images, PRIMARY KEY (holder, image)
   ) STRICT;
   CREATE INDEX image_leases_image ON image_leases (image);`,
  `ALTER TABLE layers ADD COLUMN mapped INTEGER NOT NULL DEFAULT 0;`,
  // Times are Unix milliseconds. An image with a damaged layer is not present until that layer is there again.
  // A layer is settled when a power cut can no longer have hurt it. A retired layer folder has been replaced while
  // containers had it mounted. image_store_run has one row: the boot of the last run, and whether that was closed.
  `ALTER TABLE images ADD COLUMN last_used INTEGER NOT NULL DEFAULT 0;
   UPDATE images SET last_used = unixepoch() * 1000;
   ALTER TABLE layers ADD COLUMN added INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE layers ADD COLUMN damaged INTEGER NOT NULL DEFAULT 0;
   ALTER TABLE layers ADD COLUMN settled INTEGER NOT NULL DEFAULT 0;
   CREATE TABLE layers_retired (
     number INTEGER NOT NULL, holder TEXT NOT NULL, PRIMARY KEY (number, holder)
   ) STRICT;
   CREATE TABLE image_store_run (
     only INTEGER PRIMARY KEY CHECK (only = 1), boot_id TEXT NOT NULL, open INTEGER NOT NULL
   ) STRICT;`,
  // Its bytes have reached the disk.
  `ALTER TABLE layers ADD COLUMN synced INTEGER NOT NULL DEFAULT 1;`,
];

/** True for an image (as `images`) all of whose layers are there and whole. */
export const isPresent = `NOT EXISTS (
  SELECT 1 FROM image_layers LEFT JOIN layers USING (diff_id)
  WHERE image = images.id AND coalesce(damaged, 1) = 1)`;
